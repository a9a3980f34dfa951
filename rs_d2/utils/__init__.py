"""What every room may use: errors, folders, one-line ends of programs; Detectron2's versions."""
