"""What can be asked for and what can be run: public model ids with their rules and prices, and weights."""
