"""Graders of diabetic retinopathy on pretrained features: which read best, and the one that `evaluate` uses."""
