"""Zhong, Hu, Huang, Zhang, Ji: error reduction for post-training quantization of vision transformers (ERQ, 2024)."""
