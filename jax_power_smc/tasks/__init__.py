"""Problems with their right answers, and how they are put to a model: one file per benchmark."""
