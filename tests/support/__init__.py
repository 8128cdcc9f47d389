"""What tests with real worker processes share."""
