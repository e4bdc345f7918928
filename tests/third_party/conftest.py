"""What lies here are packages of their own, with tests of their own; test_pocket runs them where they are installed."""

collect_ignore = ["cloudai-pocket"]
