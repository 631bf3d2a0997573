"""Recipes, data and the training loop; and the synthetic world of drawn shapes."""
