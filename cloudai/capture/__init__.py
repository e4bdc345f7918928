"""What a user typed, as files: functions and classes with all that they refer to, in a bundle of source."""
