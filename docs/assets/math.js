// arithmatex leaves \(...\) and \[...\] in elements of its class; KaTeX, from this site, draws them.
document.querySelectorAll(".arithmatex").forEach((element) => {
  const text = element.textContent;
  katex.render(text.slice(2, -2), element, { displayMode: text.startsWith("\\["), throwOnError: false });
});
