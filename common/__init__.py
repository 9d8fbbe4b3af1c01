"""What both ends must agree on."""
