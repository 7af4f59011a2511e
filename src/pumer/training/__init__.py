"""What a training is made of: the loss and the teacher, rates, the order of examples, checkpoints, how it stops."""
