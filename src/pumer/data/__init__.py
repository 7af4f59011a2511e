"""Images: reading, Arrow storage, augmentation."""
