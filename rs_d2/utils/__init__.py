"""What every room uses: errors, programs, files, folders, processes, Detectron2's versions."""
