"""Problems with exact verifiers, and text that holds a known share of right work. Floor 1."""
