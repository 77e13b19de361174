"""Small networks by hand, one for each kind of test, and the structures of public models."""
