"""One device: audio in, activations out, gradients in."""
