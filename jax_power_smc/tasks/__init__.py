"""Problems with reference answers and prompts: one module per dataset, listed in ``load``."""
