"""Hugging Face LLaVA models with pruned visual tokens. Importing this package imports no transformers."""
