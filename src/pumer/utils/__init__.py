"""What every part uses: files."""
