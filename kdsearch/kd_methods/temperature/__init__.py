"""How logits are softened."""
