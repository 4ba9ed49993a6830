"""Whatever fits something: embeddings, probes, fine-tuning, and the side questions; each ends in predictions files."""
