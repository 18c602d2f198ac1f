"""What makes the embedded model `postcard`: its world, training, export and grading."""
