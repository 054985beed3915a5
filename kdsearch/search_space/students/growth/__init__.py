"""Growing a network out of a smaller trained one without changing what it computes. Its files import torch."""
