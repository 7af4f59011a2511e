"""The paper's tables and its Figure 5, trained, measured and told beside the paper's own figures."""
