"""Attentions that are not plain softmax, run inside unchanged models through transformers' attention interface."""
