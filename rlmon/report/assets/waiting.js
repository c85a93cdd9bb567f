"use strict";
page.themes();
