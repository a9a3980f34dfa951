"""Checkpoint files: read without running what they hold, written whole, loaded, and renamed.

``files`` reads and writes them, ``metadata`` is what ours tell of their model, ``loading`` puts
them into a model. ``mmdet`` and ``torchvision`` rename the tensors of other libraries,
``smoke_run`` tries a model on one image, ``revision`` says which code is running.
"""
