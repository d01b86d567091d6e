"""Users of a trained network: from a file to a prediction."""
