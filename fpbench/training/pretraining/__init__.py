"""Self-supervised pretraining: `losses`, `views`, `masks`, `network`, `monitor`, `trainer` (the loop), `corpus` (what may enter)."""
