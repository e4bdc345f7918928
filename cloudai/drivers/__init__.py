"""Drivers make things happen somewhere; everything clever lives above them, once."""
