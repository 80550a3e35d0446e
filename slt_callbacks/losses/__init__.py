"""Loss functions, and the losses of samples where the weights stand."""
