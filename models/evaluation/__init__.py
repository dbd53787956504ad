"""How good a trained model is: reconstruction metrics, likelihoods, judges and pictures."""
