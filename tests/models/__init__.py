"""Models in the shapes that the literature on partitioning uses, built here since torchvision is not installed."""
