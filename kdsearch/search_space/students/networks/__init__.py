"""The modules that the families and transforms build. They import torch; the declarations do not."""
