"""A trained model on images, videos and webcams."""
