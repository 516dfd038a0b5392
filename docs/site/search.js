// Answers the theme's search dialogue from window.searchIndex (site/search_index.js), also on pages opened from the disk.
// A section answers if it has all words of the query; words in its title count more, then the number of occurrences.
(function () {
  "use strict";
  var escape = function (text) {
    return text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;").replace(/"/g, "&quot;");
  };
  var count = function (text, word) { return text.split(word).length - 1; };

  function answers(query) {
    var words = query.toLowerCase().split(/\s+/).filter(Boolean);
    var found = [];
    window.searchIndex.docs.forEach(function (doc) {
      if (doc.location.indexOf("#") < 0) { return; }  // a whole page; its sections answer
      var title = doc.title.toLowerCase(), text = doc.text.toLowerCase(), score = 0;
      for (var i = 0; i < words.length; i++) {
        var inTitle = count(title, words[i]), inText = count(text, words[i]);
        if (inTitle + inText === 0) { return; }
        score += 20 * Math.min(inTitle, 1) + Math.min(inText, 10);
      }
      found.push({ doc: doc, score: score, first: words[0] });
    });
    return found.sort(function (a, b) { return b.score - a.score; }).slice(0, 20);
  }

  function shown(answer) {
    var doc = answer.doc, at = Math.max(0, doc.text.toLowerCase().indexOf(answer.first) - 60);
    var cut = (at > 0 ? "… " : "") + doc.text.slice(at, at + 200) + " …";
    return '<article><h3><a href="' + base_url + "/" + doc.location + '">' + escape(doc.title) + "</a></h3><p>" +
      escape(cut) + "</p></article>";
  }

  document.addEventListener("DOMContentLoaded", function () {
    var old = document.getElementById("mkdocs-search-query"), results = document.getElementById("mkdocs-search-results");
    if (!old || !window.searchIndex) { return; }
    var input = old.cloneNode(true);  // without the listeners of the plugin, whose worker the disk refuses
    old.parentNode.replaceChild(input, old);
    input.form.addEventListener("submit", function (event) { event.preventDefault(); });
    var answer = function () {
      var query = input.value.trim(), found = query.length > 1 ? answers(query) : [];
      results.innerHTML = found.map(shown).join("") || (query.length > 1 ? "<p>No section has all of these words.</p>" : "");
    };
    input.addEventListener("input", answer);
    var asked = new URLSearchParams(window.location.search).get("q");
    if (asked) {
      input.value = asked;
      answer();
      new bootstrap.Modal(document.getElementById("mkdocs_search_modal")).show();
    }
  });
})();
