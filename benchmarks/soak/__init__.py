"""Does a server stay as it is under an hour of everything that clients can do to it?"""
