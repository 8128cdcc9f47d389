"""What Celery has under `contrib`, where its users look for it."""
