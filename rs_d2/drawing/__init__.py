"""Pictures of detections and ground truth."""
