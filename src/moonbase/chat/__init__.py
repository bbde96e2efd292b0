"""The vocabulary that all layers share: what is asked, what is prompted, what comes back. Data only."""
