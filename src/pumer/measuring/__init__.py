"""What speed, memory and arithmetic are measured with."""
