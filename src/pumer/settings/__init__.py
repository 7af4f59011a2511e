"""What a user gives to each command: frozen dataclasses that check their values, and import nothing that takes long."""
