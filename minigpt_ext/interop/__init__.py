"""Other people's models, in and out: files of weights, Hugging Face directories, the hub."""
