"""Put a store, or a folder of a model, on the Hugging Face Hub."""
