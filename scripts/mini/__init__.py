"""The embedded world and model: scenes, questions, a CLIP tower, a small Llama, and how they are trained."""
