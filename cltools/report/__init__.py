"""The report of an experiment: one HTML file that needs neither a server nor a network."""
