"""The paper's tables and its Figure 5: trained, measured, and set beside the paper's own numbers."""
