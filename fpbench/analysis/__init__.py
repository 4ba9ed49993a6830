"""Pure functions of predictions: scores, statistics, calibration, shift, claims. No torch, no encoder, no image."""
