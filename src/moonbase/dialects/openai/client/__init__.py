"""The client half of the dialect: requests to bytes, response bytes to events, errors to our tree."""
