"""What a GemmaFineTune is: the models, names and pure rules that operator, trainer and command line share."""
