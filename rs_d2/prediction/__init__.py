"""Detections of a user's own images, folders and videos."""
