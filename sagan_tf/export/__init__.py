"""A trained generator for others: SavedModel, Keras, TFLite, ONNX, and a model card."""
