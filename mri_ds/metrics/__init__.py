"""How good a prediction is: numpy in, floats out, units in names, empty masks an explicit case."""
